"""Stage 1 (paper, section 3.1): images to codes and back, the losses that train it, and how close two images are."""
