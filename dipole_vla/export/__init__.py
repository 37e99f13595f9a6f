"""A policy in the forms that leave this program: plain PEFT adapters, one distilled network, a sampling loop."""
