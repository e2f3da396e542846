"""Package metadata. Versions are ranges here; requirements.txt pins what was tested."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SHIPPED = ("distill_configs/**/*.json", "jsons/**/*.json", "docs/*.md", "requirements.txt")
"""Files of the top level that commands look up or messages name; distill/shipped.py finds them in the wheel."""


class BuildWithShippedFiles(build_py):
    """Puts them into the package; an editable install finds them where they are."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        root, target = Path(__file__).resolve().parent, Path(self.build_lib, "distill", "shipped_files")
        for file in (file for pattern in SHIPPED for file in root.glob(pattern)):
            place = target / file.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


setup(
    name="minidistill",
    version="0.1.0",
    description="Small, fast Chinese BERT encoders by staged distillation with whole-word masking",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    cmdclass={"build_py": BuildWithShippedFiles},
    packages=find_packages(include=["distill", "distill.*"]),
    package_data={
        "distill.sample": ["text/*.txt", "text/*.json"],
        "distill.downstream": ["tasks/*.json", "grids/*.json"],
        "distill.release": ["*.html"],
    },
    install_requires=[
        "torch>=2.8",
        "transformers>=5.23,<6",
        "textbrewer>=0.2.1.post1",
        "datasets>=4",
        "zstandard>=0.23",
        "accelerate>=1.10",
        "pydantic>=2.11",
        "typer>=0.20",
        "rich>=14",
        "tqdm>=4.66",
        "psutil>=5.9",
        "numpy>=2",
        "pyarrow>=21",
        "safetensors>=0.6",
        "huggingface_hub>=1",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "matplotlib>=3.9",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "tensorboard>=2.18",
        "ltp>=4.2.14",
    ],
    extras_require={
        "jieba": ["jieba>=0.42.1"],
        "onnx": ["onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.7"],
        "ray": ["ray>=2.50"],
        "test": ["pytest>=8", "hypothesis>=6.100", "pytest-xdist>=3.6", "ruff", "mypy", "jieba>=0.42.1"],
    },
    entry_points={"console_scripts": ["distill = distill.__main__:main"]},
    classifiers=["Programming Language :: Python :: 3.11", "Operating System :: OS Independent"],
)
