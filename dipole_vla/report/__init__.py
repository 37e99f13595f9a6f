"""The page a driving engineer reads after an evaluation. `page.write_report` makes it; needs the extra `report`."""
