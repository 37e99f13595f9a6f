"""InternVL3, the language model of ReCogDrive."""
