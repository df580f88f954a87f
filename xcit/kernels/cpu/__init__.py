"""CPU implementations: C++ kernels for x86 CPUs, compiled when the package is installed, and oneDNN's products."""
