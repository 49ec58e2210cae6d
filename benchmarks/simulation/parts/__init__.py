"""What a simulated system is made of: servers with their queues and caches, stations, cores, and the router."""
