"""The operations in C++ for x86 CPUs, compiled when the package is installed."""
