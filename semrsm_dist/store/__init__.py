"""What a run keeps on disk. The only room that imports Zarr."""
