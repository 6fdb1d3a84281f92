"""NVML behind one Protocol: power, energy, clocks, links, PCIe."""
