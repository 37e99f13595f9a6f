"""Where the advantage G comes from: group-relative scored returns (`returns`), or a learnt critic (`one_step`)."""
