"""Images: decoding, data sets, LMDBs, batches, images that cannot be read, the toy churches, packing."""
