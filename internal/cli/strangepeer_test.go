package cli

import "testing"

func TestAliased(t *testing.T) {
	tests := []struct {
		settings string
		want     bool
	}{
		{"user git\nhostname sam\nport 22\n", false},
		{"host sam\nhostname Sam\nproxycommand none\n", false},
		{"hostname sam.example.org\n", true},
		{"hostname 192.0.2.1\n", true},
		{"hostname sam\nproxyjump gate\n", true},
		{"hostname sam\nProxyCommand nc %h %p\n", true},
		{"", false},
	}
	for _, tt := range tests {
		if got := aliased(tt.settings, "sam"); got != tt.want {
			t.Errorf("%q: %v", tt.settings, got)
		}
	}
}
