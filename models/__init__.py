"""What the paper says: networks, objectives and samplers. No files, flags or devices.

"Published" is what the authors' code does, where that differs from the paper.

`vqgan`: images to codes and back (section 3.1). `prior`: p(codes) (section 3.2). `sampling`: drawing codes (section
3.3). `kernels`: operations with several ways to compute them. `parts`: random numbers of parts of a batch. `ema`: a
moving average of weights.
"""
