"""WorkModules to learn from, in this order: `sample`, `flaky`, `count`, `webhook`. Copy the package and change it."""
