"""The page of a federated run."""
