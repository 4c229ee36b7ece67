"""Many photos: an exported classifier on Ray Data, one parquet row a photo."""
