// Package files opens, checks and writes the files of this process: those that
// hold a secret or are trusted when they are read back, its directories and
// locks, and what it writes for the user. It knows nothing of keys.
//
// Another user of the machine may have prepared any path: a file of his own, a
// symbolic link, a hard link, a named pipe, or a directory in which he can
// exchange files. So every function here
//
//  1. checks the opened file, not the path: its type, its owner and its mode;
//  2. never follows a symbolic link to a file that it writes;
//  3. writes beside and renames, so that a name stands for a whole file.
//
// Trusted owners are the user that runs the process, and root.
package files
