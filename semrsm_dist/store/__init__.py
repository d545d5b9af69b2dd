"""What a run keeps on disk. The only place that knows Zarr."""
