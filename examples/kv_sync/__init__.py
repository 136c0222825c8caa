"""A key-value store in which each write and each read is answered by a quorum of the holders."""
