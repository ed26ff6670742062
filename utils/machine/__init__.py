"""The machine that runs a script: devices, processes, files, signals, random streams. Knows no runs and no models."""
