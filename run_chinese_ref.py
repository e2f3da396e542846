"""`python run_chinese_ref.py`: MiniRBT's preprocessing, with its project structure as defaults.

Without arguments: the texts in dataset/train and dataset/dev, words by pretrained_model_path/ltp, tokens by
pretrained_model_path/RoBERTa; references go to dataset/references, and dataset/data.json lists text and references.
With arguments it is `distill ref`.
"""

import sys

from distill.cli import guard, main
from distill.commands.project_folders import write_project_references

if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(["ref", *sys.argv[1:]])
    else:
        guard(write_project_references)
