"""Images, from files to batches.

images: decoding, resizing, masks · image_folders, lmdb_images: where encoded images lie
datasets: data sets by name, datasets.yaml · toy_churches: the embedded one · pack_images: the command that packs one
batch_order: which images a step sees · batches: loading them · bad_images: those that cannot be read
pictures: grids and PNG files
"""
