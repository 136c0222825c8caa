"""How a cluster grows: real kits, many in each of a few processes, on one real etcd."""
