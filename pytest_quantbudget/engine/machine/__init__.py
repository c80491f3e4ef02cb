"""GPUs and CPUs while something is measured, as NVML and the kernel see them."""
