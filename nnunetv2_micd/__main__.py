"""``python -m nnunetv2_micd`` is ``nnUNetv2_micd``."""

from nnunetv2_micd.cli.main import main

if __name__ == "__main__":
    main()
