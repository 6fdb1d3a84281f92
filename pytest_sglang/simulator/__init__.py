"""A rig without hardware: NVML, server process, caches, faults. Written from recorded facts, never from the plugin's parsers."""
