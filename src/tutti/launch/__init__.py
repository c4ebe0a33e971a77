"""From one run to its processes: workers on this machine, started, watched and restarted."""
