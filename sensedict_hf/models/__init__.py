"""What is loaded and run: needs torch, transformers and safetensors alone. Files here import only their siblings."""
