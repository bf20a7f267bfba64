"""Where arrays live: the device mesh, the sharding table, the start of the runtime."""
