"""Which critic answers, and how that changes: pointers, leases, loading, verification, swaps, and the watch."""
