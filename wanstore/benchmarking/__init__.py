"""What a preset costs on this machine: time, memory, and whether it works at all."""
