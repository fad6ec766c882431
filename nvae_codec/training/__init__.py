"""Training: from a data set to an integer model.

`run` describes a run, `recipe` how it is trained, `data` what it is trained on. `loop` trains: it begins by `start`,
minimises `objective` (with `spectral`), executes as `execution` says, alone or with others (`distributed`), and writes
`log` and `checkpoint`. `evaluation` and `sampling` look at the result; `export` converts it to integers, and
`import_nvae` brings in networks of the NVAE release.
"""
