// Package packaging has the tests of what contrib/ installs on a machine: the Debian
// package, which they build, install, use and remove again, the units of systemd and the
// configuration of logrotate. There is nothing to import.
package packaging
