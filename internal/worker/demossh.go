package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"mirror-shell/internal/cli"
)

// demoHosts is what demo-ssh has in place of ssh_config and known_hosts: one
// JSON object in ~/.ssh/demo-hosts.json.
type demoHosts map[string]demoAddress

type demoAddress struct {
	Address string `json:"address"`
	HostKey string `json:"host_key"` // as in authorized_keys
}

const demoHostsFile = ".ssh/demo-hosts.json"

func (h demoHosts) write(home string) error {
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	known := ""
	for _, at := range h {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(at.HostKey))
		if err != nil {
			return err
		}
		known += knownhosts.Line([]string{knownhosts.Normalize(at.Address)}, key) + "\n"
	}
	return errors.Join(
		writeFile(filepath.Join(home, demoHostsFile), 0o600, string(data)),
		writeFile(filepath.Join(home, ".ssh/known_hosts"), 0o600, known))
}

// settings prints what `ssh -G` would, as far as the worker needs it.
func (h demoHosts) settings(w io.Writer, home, host string) error {
	at, ok := h[host]
	if !ok {
		return fmt.Errorf("could not resolve hostname %s", host)
	}
	address, port, err := net.SplitHostPort(at.Address)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "host %s\nuser git\nhostname %s\nport %s\nidentitiesonly yes\nidentityfile %s\nuserknownhostsfile %s\nstricthostkeychecking true\n",
		host, address, port, filepath.Join(home, ".ssh/id_ed25519"), filepath.Join(home, ".ssh/known_hosts"))
	return err
}

func readDemoHosts() (hosts demoHosts, home string, err error) {
	if home, err = os.UserHomeDir(); err != nil {
		return nil, "", err
	}
	data, err := os.ReadFile(filepath.Join(home, demoHostsFile))
	if err != nil {
		return nil, "", err
	}
	return hosts, home, json.Unmarshal(data, &hosts)
}

// demoSSH is "ssh HOST COMMAND" for the demo: it takes the options that git and
// we give to ssh, knows the demo's hosts, and checks their keys.
func demoSSH(ctx context.Context, p *cli.Program) error {
	host, command, err := sshArguments(p.SSH.Args)
	if err != nil {
		return err
	}
	if slices.Contains(p.SSH.Args[:slices.Index(p.SSH.Args, host)], "-G") {
		hosts, home, err := readDemoHosts()
		if err != nil {
			return err
		}
		return hosts.settings(p.Stdout, home, host)
	}
	client, err := dialDemo(ctx, host)
	if err != nil {
		fmt.Fprintf(p.Stderr, "ssh: %v\n", err)
		return cli.Exit(255)
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		fmt.Fprintf(p.Stderr, "ssh: %v\n", err)
		return cli.Exit(255)
	}
	defer session.Close()
	if v := os.Getenv("GIT_PROTOCOL"); v != "" {
		session.Setenv("GIT_PROTOCOL", v) // a server may refuse it
	}
	session.Stdout, session.Stderr = p.Stdout, p.Stderr
	stdin, err := session.StdinPipe()
	if err != nil {
		return err
	}
	go func() {
		io.Copy(stdin, p.Stdin)
		stdin.Close()
	}()
	var exit *ssh.ExitError
	if err = session.Run(command); errors.As(err, &exit) {
		return cli.Exit(exit.ExitStatus())
	}
	return err
}

// sshArguments leaves out options and returns host and command.
func sshArguments(args []string) (host, command string, err error) {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		option := args[0]
		args = args[1:]
		if option == "--" && len(args) > 0 && !strings.HasPrefix(args[0], "-") {
			break
		}
		if (option == "-o" || option == "-p" || option == "-i") && len(args) > 0 {
			args = args[1:]
		}
	}
	if len(args) == 0 {
		return "", "", cli.Usage{Message: "demo-ssh needs a host"}
	}
	return args[0], strings.Join(args[1:], " "), nil
}

func dialDemo(ctx context.Context, host string) (*ssh.Client, error) {
	hosts, home, err := readDemoHosts()
	if err != nil {
		return nil, err
	}
	at, ok := hosts[host]
	if !ok {
		return nil, fmt.Errorf("could not resolve hostname %s", host)
	}
	hostKey, _, _, _, err := ssh.ParseAuthorizedKey([]byte(at.HostKey))
	if err != nil {
		return nil, err
	}
	private, err := os.ReadFile(filepath.Join(home, ".ssh/id_ed25519"))
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(private)
	if err != nil {
		return nil, err
	}
	return ssh.Dial("tcp", at.Address, &ssh.ClientConfig{
		User: "git", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.FixedHostKey(hostKey), Timeout: 10 * time.Second,
	})
}
