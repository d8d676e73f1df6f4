//! Namespaces, agents and wire captures for the tests and the demo; nothing in it is mocked.
