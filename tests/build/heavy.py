"""Packages that take long to import."""

HEAVY = (
    "torch",
    "numba",
    "matplotlib",
    "h5py",
    "nir",
    "pydantic",
    "rich",
    "typer",
    "distributed",
    "onnx",
    "onnxruntime",
)
