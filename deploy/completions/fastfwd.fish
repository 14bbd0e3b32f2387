# What fish completes after fastfwd. Copy to /usr/share/fish/vendor_completions.d/ (or for one account
# ~/.config/fish/completions/); it is found by the command's name, at once.

function __fastfwd_explained -d 'Whether the word before is the address that --explain wants'
    set -l words (commandline --tokenize --cut-at-cursor --current-process)
    test (count $words) -ge 3; and test "$words[-2]" = --explain
end

function __fastfwd_forwards -d 'The names that forwards have in the file that is meant; not in those that it includes'
    set -l words (commandline --tokenize --cut-at-cursor --current-process)
    set -l file /etc/fastfwd.conf
    test -e $file; or set file /etc/rinetd.conf
    for i in (seq (count $words))
        switch $words[$i]
            case -c --conf-file
                set file $words[(math $i + 1)]
            case '--conf-file=*'
                set file (string replace -- --conf-file= '' $words[$i])
        end
    end
    sed -n 's/^[^#]*[[, ]name=\([A-Za-z0-9_.:-]*\).*/\1/p' (string replace -r '^~' $HOME -- $file) 2>/dev/null
end

complete -c fastfwd -f
complete -c fastfwd -n __fastfwd_explained -a '(__fastfwd_forwards)'
complete -c fastfwd -s c -l conf-file -r -F -d 'Read this configuration'
complete -c fastfwd -s f -l foreground -d 'Stay in the foreground'
complete -c fastfwd -s t -l test -d 'Check the configuration and exit'
complete -c fastfwd -l explain -x -d 'With -t, say which line lets a client in or keeps it out'
complete -c fastfwd -l upgrade -d 'Have the running program replaced by the installed one'
complete -c fastfwd -l status -d 'Show what the running program does, and exit'
complete -c fastfwd -l doctor -d 'Show limits and capacity, and exit'
complete -c fastfwd -l sessions -x -d 'With --doctor, say what so many sessions need'
complete -c fastfwd -l lenient -d 'Skip lines with errors'
complete -c fastfwd -s h -l help -d 'Show the options and exit'
complete -c fastfwd -s v -l version -d 'Show the version and exit'
