"""`python -m nvae_codec.cli` is the `nvae-codec` command."""

from .main import main

if __name__ == "__main__":
    main()
