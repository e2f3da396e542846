"""The commands of `distill`, one file for each group of them; cli.py joins them."""
