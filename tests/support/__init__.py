"""What tests share: small real things, slow twins, contract suites. Imported as `support.x`."""
