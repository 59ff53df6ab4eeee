package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

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
	return writeFile(filepath.Join(home, demoHostsFile), 0o600, string(data))
}

// demoSSH is "ssh HOST COMMAND" for the demo: it takes the options that git and
// we give to ssh, knows the demo's hosts, and checks their keys.
func demoSSH(ctx context.Context, p *cli.Program) error {
	host, command, err := sshArguments(p.SSH.Args)
	if err != nil {
		return err
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
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(home, demoHostsFile))
	if err != nil {
		return nil, err
	}
	var hosts demoHosts
	if err := json.Unmarshal(data, &hosts); err != nil {
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
