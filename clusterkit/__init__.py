"""ClusterKit."""
