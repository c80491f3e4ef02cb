"""From a request to a measurement: the store, locks, the measuring process and its phases."""
