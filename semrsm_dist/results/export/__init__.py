"""Results for other programs, in formats that each keep either matrices or neighbours."""

OF_MATRICES = {
    "npy": "NumPy",
    "csv": "text",
    "mat": "MATLAB",
    "parquet": "a row for each pair",
    "zarr": "plain Zarr",
    "rsatoolbox": "its RDMs, dissimilarities",
    "mne-rsa": "condensed dissimilarities",
}
"""Formats of a run that keeps matrices, and what they are."""

OF_NEIGHBOURS = {"edges": "Parquet", "csr": "for scipy", "atlas": "for Embedding Atlas"}
"""Formats of a run that keeps neighbours."""
