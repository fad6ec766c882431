"""Training data: from files on disk to batches that can be repeated.

`StoredImages` hold or read images (`stored`, `files`, `arrays`, `lmdb_files`). An `ImageSet` makes items of one size of
them, as a network sees them (`sets`, `augment`). `Batches` are the steps of a run (`batches`): everything random in
them follows from (seed, step), so a resumed run continues exactly and any process can compute any batch.

A data set is one file with a `Definition` (`mnist`, `cifar`, ...), named in the table of `open`, whose `open_dataset`
is what the rest of the program calls. Nothing is downloaded, and nothing is unpickled but the CIFAR files whose
checksums are known. Cropping, resizing and splits are those of the NVAE release, except where a docstring says so.
"""
