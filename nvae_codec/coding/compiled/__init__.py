"""The compiled half of pixel coding: `pixels.c`, which `build.py` compiles and `library.py` calls."""
