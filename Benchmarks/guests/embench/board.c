// What Embench's programs ask of a board: time is measured from outside.
void initialise_board(void) {}
void start_trigger(void) {}
void stop_trigger(void) {}
