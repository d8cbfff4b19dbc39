"""Files as they are written and read: JSON, TOML and safetensors headers."""
