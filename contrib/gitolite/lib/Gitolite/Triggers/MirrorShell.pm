package Gitolite::Triggers::MirrorShell;

# Lets mirror-shell say where a user's push belongs, before git starts.
#
# In ~/.gitolite.rc, with this file below LOCAL_CODE's lib/Gitolite/Triggers:
#
#     PRE_GIT      => ['MirrorShell::pre_git'],
#     # MIRROR_SHELL => '/opt/bin/mirror-shell',   # unless it is in /usr/local/bin or /usr/bin
#
# gitolite has checked by then that the user may write to the repository at all. On
# the master, and in a repository that is not mirrored, nothing happens: gitolite
# goes on. On a slave the push is refused, or this process becomes mirror-shell, which
# passes it on to the master. Without this module our pre-receive hook still refuses
# what it has to; only redirecting is not possible from there.

use Gitolite::Rc;
use Gitolite::Common;

use strict;
use warnings;

my @usual = ( '/usr/local/bin/mirror-shell', '/usr/bin/mirror-shell' );

sub pre_git {
    my ( $repo, $user, $aa ) = @_[ 1, 2, 3 ];
    return if $aa ne 'W';

    # By these our hooks know a session of ours, and this one is not.
    delete @ENV{qw(MIRROR_SHELL_PEER MIRROR_SHELL_USER)};

    my $program = $rc{MIRROR_SHELL} || ( -x $usual[0] ? $usual[0] : $usual[1] );
    my $where   = ask( $program, 'gitolite-where', '--', $user, "$rc{GL_REPO_BASE}/$repo.git", $repo );
    return if $where eq 'here';
    _die "mirror-shell: unexpected answer '$where'" if $where ne 'redirect';
    _die "mirror-shell: pushes over http cannot be redirected, please push over ssh" if $ENV{REQUEST_URI};

    gl_log( 'mirror-shell', 'redirect', $repo, $user );
    $ENV{SSH_ORIGINAL_COMMAND} = "git-receive-pack '$repo'";
    no warnings 'exec';    # it would say the same, and the reason in $! would be lost
    exec {$program} $program, 'user', $user or _die "mirror-shell: $program: $!";
}

# ask runs a program, never through a shell, and returns its one line of output. Its
# reasons go to the user by its standard error, or over http, where that is the web
# server's log, by gitolite. One that fails ends the session: a slave that takes a user's
# push loses it at the next push of its master.
sub ask {
    my @command = @_;
    my $pid = open( my $answer, '-|' );
    _die "mirror-shell: fork: $!" if not defined $pid;
    if ( not $pid ) {
        open( STDERR, '>&', \*STDOUT ) if $ENV{REQUEST_URI};
        no warnings 'exec';
        exec { $command[0] } @command or print STDERR "FATAL: mirror-shell: $command[0]: $!\n";
        require POSIX;
        POSIX::_exit(127);
    }
    my @lines = <$answer>;
    my $done  = close($answer);
    chomp(@lines);
    my $last = @lines ? pop @lines : '';

    # Over http there may be warnings before it, about a log that cannot be written.
    print STDERR "$_\n" for @lines;
    return $last if $done;
    exit 1 if not $ENV{REQUEST_URI};
    $last =~ s/^fatal: //i;
    _die $last;
}

1;
