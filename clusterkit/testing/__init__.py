"""For tests, yours too: an embedded etcd, a store in memory, a virtual clock."""
