"""Images, from files to batches.

images: decoding, resizing, masks · image_folders, lmdb_images: where encoded images lie · dataset_paths: datasets.yaml
datasets: data sets by name · toy_churches: the embedded one · pack_images: the command that packs one
batch_order: which images a step sees · batch_reader, batches: loading them · bad_images: those that cannot be read
pictures: grids and PNG files
"""
