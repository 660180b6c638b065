"""The command ``nnUNetv2_micd``: one file for each subcommand.

A file of a subcommand imports torch, nnU-Net and the code that does the work only when it runs, because these imports
take seconds. So ``nnUNetv2_micd path``, which shells run at their start, and every ``--help`` answer at once.
"""
