package snapshot

import (
	"encoding/json"
	"testing"
	"unicode/utf8"
)

// Every name comes back from JSON as it was, and no text is that of two names.
func FuzzNameText(f *testing.F) {
	for _, name := range []string{"refs/heads/main", "refs/heads/\xff\xfe", "refs/heads/caf\u00e9\xc3", "\ufffd", `\xff`, `\x41`, `\`, ""} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		data, err := json.Marshal(nameText(name))
		if err != nil {
			t.Fatal(err)
		}
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			t.Fatal(err)
		}
		isRefName := isRef("refs/" + name)
		back, err := parseNameText(text)
		if isRefName && (err != nil || back != name) {
			t.Errorf("%q became %q: %v", name, back, err)
		}
		if back, err := parseNameText(name); err == nil && nameText(back) != name && isRef("refs/"+back) && utf8.ValidString(name) {
			t.Errorf("%q is read as %q, which is written %q", name, back, nameText(back))
		}
	})
}
