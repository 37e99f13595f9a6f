"""Where the advantage G comes from: group-relative returns (`returns`), or a learnt critic (`one_step`, `iql`)."""
